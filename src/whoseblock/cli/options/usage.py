"""The error of a wrong command line, without click until there is one."""

__all__ = ["usage_error"]


def usage_error(message: str) -> Exception:
    """Return a `click.UsageError`."""
    import click

    return click.UsageError(message)
