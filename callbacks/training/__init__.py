"""What callbacks that change the training share."""
