"""Encrypted guest data: LUKS1 (crypt_method 2) and QEMU's old AES (1). Modules load numpy; import them when needed."""
