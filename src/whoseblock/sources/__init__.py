"""Who reports failures: one module for each form in which people have them."""
