"""Export of a trained encoder to the formats that other libraries load."""
