"""Pictures that commands leave beside their results, all drawn by matplotlib."""
