"""The report of a lookup or of the journal: one page of HTML, for a ticket or a customer."""
