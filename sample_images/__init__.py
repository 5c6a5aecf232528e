"""Sample images: small real qcow2 files, healthy and damaged, and what builds them."""
