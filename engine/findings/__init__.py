"""What it means: effects, the reading, the signature, summaries. Tables in; words and numbers out."""
