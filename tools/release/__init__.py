"""Building, checking and trying the packages of a release."""
