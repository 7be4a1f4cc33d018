"""How the experiments of `polarax reproduce` are shown: tables, pictures, a page."""
