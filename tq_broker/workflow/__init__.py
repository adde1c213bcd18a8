"""What authors of workflows write and call."""
