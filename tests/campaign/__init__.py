"""The campaign: every format and every verb, damaged on purpose. See `__main__` for how to run it by hand.

Words used here. *Format*: one way to hand something to the program, with a sound sample, mutators and a reader of its
own that was written from the format's definition. *Meaning*: what that reader says the bytes mean.
"""
