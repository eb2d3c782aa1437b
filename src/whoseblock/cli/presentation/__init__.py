"""Results for people and programs: tables, JSON Lines, messages, a progress bar."""
