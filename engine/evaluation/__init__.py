"""What a model does with a text: loss, attention, agreement with another model; and what it writes."""
