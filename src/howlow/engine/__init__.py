"""Examples -> numbers: tokens, order, layouts, the model and its adapter, training, inference.

Every part takes plain arguments and stands alone; settings stop at the door (`howlow.trial`).
"""
