"""What a step was: losses, speed, time, hardware, evaluation."""
