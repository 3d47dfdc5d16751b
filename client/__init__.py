"""One hospital. Everything in this room stays behind its firewall; the only door out is `wardround.client.app`."""
