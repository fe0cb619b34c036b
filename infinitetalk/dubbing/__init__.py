"""Dubs a film: what is generated is laid over the film's own frames, where its speakers are.

`clock` says which frame of the film and which generated frame are shown when, `motion` where a speaker's face is in
each frame of the film, `view` which part of the film is generated, and `composite` lays it over the film.
"""
