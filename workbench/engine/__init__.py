"""The qcow2 driver: metadata, mapping, guest reads and writes."""
