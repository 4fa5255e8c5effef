"""Who belongs to the federation: home, certificates, invitations, register."""
