"""Metrics of steps and evaluations: losses, anomalies, speed, time, hardware."""
