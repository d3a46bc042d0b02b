"""The TensorFlow strategies and the training backend that they share."""
