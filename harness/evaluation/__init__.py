"""Language models run over scenarios and put in one table."""
