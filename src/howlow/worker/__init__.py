"""What one machine, or one accelerator of it, does with the trials of a run directory, one after the other.

`measuring` does one trial: idle reading, batch search, the trial, the diagnosis of a death, the record. `taking` claims
one trial after the other. `board` is the file in which a sweep says what there is to do, and `joining` is a worker in a
process of its own that reads it (`howlow worker DIR`).
"""
