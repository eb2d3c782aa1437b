"""Plan, apply and verify repairs of failed ranges; `whoseblock.respond.service` is the entry."""
