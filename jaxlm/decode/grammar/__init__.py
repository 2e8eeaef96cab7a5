"""Grammars as masks over tokens: which tokens keep a text a prefix of some string of a language.

    expression     the syntax trees that regular expressions and grammars are read into; characters as bytes of UTF-8
    automaton      finite automata over bytes as tables
    regex          a regular expression -> automaton
    context_free   rules, or their text form -> grammar
    earley         a grammar -> states over bytes, made as they are asked for; or a table, if they are few
    vocabulary     states over bytes -> tokens allowed and transitions, by one walk of a trie
    constraint     any of these, or another library's matcher, asked token by token on the host
    by_llguidance, by_xgrammar    the libraries llguidance and xgrammar as such constraints

In the decode loop, `jaxlm.decode.processors.automaton` runs tables compiled, `.constraint` asks the host at each step.
Everything in this folder is numpy.
"""
