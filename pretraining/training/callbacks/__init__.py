"""What is done beside the training, one concern per module."""
