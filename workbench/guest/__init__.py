"""What is inside the guest's disk."""
