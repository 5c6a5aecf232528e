"""LUKS1 on-disk structures (LUKS On-Disk Format Specification 1.2.3)."""
