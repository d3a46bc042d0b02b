"""What makes a run start sooner: an agent that is started early, and processes that keep what they have imported for the next run."""
