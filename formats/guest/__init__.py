"""What lies inside the guest's disk and says where it belongs: partition tables and the first blocks of file systems."""
