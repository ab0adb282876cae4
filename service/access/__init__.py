"""Who may do what: keys, their scopes and the tenants to which they belong."""
