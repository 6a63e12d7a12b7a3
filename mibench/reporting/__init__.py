"""What is made of results: tables, records, figures, pages."""
