"""``whoseblock completion``: tab completion for the shell."""

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command(
    epilog="""\b
Examples:
  whoseblock completion bash > \\
    ~/.local/share/bash-completion/completions/whoseblock
  whoseblock completion zsh > ~/.zfunc/_whoseblock
  whoseblock completion fish > ~/.config/fish/completions/whoseblock.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes commands and options in SHELL."""
    root = context.find_root()
    kind = get_completion_class(shell)
    if kind is None:  # pragma: no cover - click supports the three above
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(root.command, {}, "whoseblock", "_WHOSEBLOCK_COMPLETE").source())
