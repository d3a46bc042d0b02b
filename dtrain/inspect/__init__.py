"""Runs where a person looks into a run or at nodes; imports `report` and below. Stacks, usage, profiles, the debugger's terminal, and the checks of nodes."""
