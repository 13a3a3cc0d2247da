"""Undo: what it takes to get the original files back, byte for byte, out of the folded ones.

    fold:    original files, folded files  ->  undo file
    unfold:  folded files, undo file       ->  original files

Most of the original is in the folded files too. So the undo file is a list of instructions, "copy this range of that
folded file" or "these bytes", with the bytes that the folded files lack: the tensors that were replaced or removed
(`delta` finds what is common, `form` is the format, `restore` carries the instructions out). SHA-256 digests of all
files stand in it, and are checked before and after.
"""
