"""What travels between and is kept by parties: TLS links, frames, orders, certificates, the journal."""
