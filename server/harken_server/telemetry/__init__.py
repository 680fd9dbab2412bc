"""What can be observed: metrics, memory, the machine, logs."""
