"""What can be done with whole disks, one operation a file: each takes open sources and says what came out."""
