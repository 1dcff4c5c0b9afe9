"""From the files of a model to weights on the device and back, and what the files say of a model beside its weights.

Formats are read by `conversion`; here arrays are placed, fused and packed."""
