"""Parse the reports of other programs: SMART logs, ndctl, cxl and rasdaemon."""
