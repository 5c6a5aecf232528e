"""Extended help of qemu-io's commands, in our words: options and one example each."""

from __future__ import annotations

from typing import Final

_COMMON: Final = """ -C  print figures in a form for machines
 -q  print no figures"""

HELP: Final[dict[str, str]] = {
    "read": f"""
 Reads a range of the disk; 'read -v 512 1k' shows 1 KiB from offset 512.
 -b  read the VM state instead (not supported here)
 -P  verify that all bytes read are this one
 -s  where in the data read verification starts (with -P)
 -l  how many bytes are verified (with -P)
 -p  ignored
 -v  show the bytes
{_COMMON}""",
    "readv": f"""
 Reads a range into several buffers; 'readv -v 512 1k 1k' shows 2 KiB from offset 512.
 -P  verify that all bytes read are this one
 -v  show the bytes
{_COMMON}""",
    "write": f"""
 Writes a range of the disk; 'write 512 1k' writes 1 KiB of 0xcd at offset 512.
 -b  write the VM state instead (not supported here)
 -c  write compressed clusters
 -f  flush afterwards
 -n  with -z: fail rather than write zeros one by one
 -p  ignored
 -P  the byte to write
 -s  a file to take the bytes from, repeated as needed
 -u  with -z: clusters may be given back
 -z  make the range read as zeros
{_COMMON}""",
    "writev": f"""
 Writes a range from several buffers; 'writev 512 1k 1k' writes 2 KiB at offset 512.
 -f  flush afterwards
 -P  the byte to write
{_COMMON}""",
    "aio_read": f"""
 As readv. Here the request is complete when the command ends, which is one of the orders qemu-io may choose.
 -i  ignored
 -P  verify that all bytes read are this one
 -v  show the bytes
{_COMMON}""",
    "aio_write": f"""
 As writev. Here the request is complete when the command ends, which is one of the orders qemu-io may choose.
 -f  flush afterwards
 -i  ignored
 -P  the byte to write
 -u  with -z: clusters may be given back
 -z  make the range read as zeros
{_COMMON}""",
    "discard": f"""
 Gives the clusters in a range back; 'discard 512 1k' asks for 1 KiB at offset 512. Parts of clusters stay.
{_COMMON}""",
    "open": """
 Opens an image; 'open -o l2-cache-size=64k disk.qcow2' with a small table cache.
 -r  read-only
 -U  beside another program that holds it
 -d  unmap (default) or ignore discards
 -o  cache-size, l2-cache-size, refcount-cache-size, l2-cache-entry-size, cache-clean-interval, overlap-check,
     lazy-refcounts
 -C -s -n -k -i -t  ignored""",
    "reopen": """
 Closes the image and opens it again; 'reopen -r' read-only, 'reopen -w' for writing.
 -o  options as for open
 -c  ignored""",
}
