//! Shell scripts, for shellcheck, and what it says of them.

use super::Output;
use crate::recipe::problem::Problem;
use serde::Deserialize;

/// A shell script as a node has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Script {
    pub source: String,
    pub text: String,
    /// For each line of the text the source's.
    pub lines: Vec<usize>,
}

/// `#!` lines of shells that shellcheck knows.
fn is_shell(text: &str) -> bool {
    let first = text.lines().next().and_then(|l| l.strip_prefix("#!")).unwrap_or_default();
    let mut words = first.split_whitespace();
    let program = |word: Option<&str>| word.and_then(|w| w.rsplit('/').next()).unwrap_or_default().to_string();
    let name = match program(words.next()).as_str() {
        "env" => program(words.next()),
        name => name.to_string(),
    };
    ["sh", "bash", "dash", "ksh"].contains(&name.as_str())
}

pub(super) fn script(output: &Output) -> Option<Script> {
    let Output { text, lines, entry, .. } = output;
    is_shell(text).then(|| Script { source: entry.source.clone(), text: text.clone(), lines: lines.clone() })
}

#[derive(Deserialize)]
struct Document {
    comments: Vec<Comment>,
}

#[derive(Deserialize)]
struct Comment {
    file: String,
    line: usize,
    code: u32,
    message: String,
}

/// shellcheck's JSON as problems. Its files are called by the script's place in `scripts`.
pub fn problems(json: &[u8], scripts: &[Script]) -> Result<Vec<Problem>, String> {
    let document: Document = serde_json::from_slice(json).map_err(|e| format!("shellcheck's answer: {e}"))?;
    let mut problems = Vec::new();
    for comment in document.comments {
        let number = comment.file.rsplit('/').next().and_then(|name| name.parse::<usize>().ok());
        let script = number.and_then(|n| scripts.get(n));
        let script = script.ok_or_else(|| format!("shellcheck's answer names {:?}", comment.file))?;
        let line = script.lines.get(comment.line.wrapping_sub(1)).copied().unwrap_or(0);
        let key = format!("SC{}", comment.code);
        problems.push(Problem { file: script.source.clone(), line, key, message: comment.message });
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_are_known_by_their_first_line() {
        for (text, want) in [
            ("#!/bin/sh\n", true),
            ("#!/bin/bash -eu\n", true),
            ("#!/usr/bin/env bash", true),
            ("#! /bin/sh", true),
            ("#!/usr/bin/python3\n", false),
            ("#!/bin/bashful\n", false),
            ("echo\n#!/bin/sh", false),
            ("", false),
        ] {
            assert_eq!(is_shell(text), want, "{text:?}");
        }
    }

    #[test]
    fn an_answer_is_brought_back_to_the_sources_line() {
        let script = Script { source: "a.j2".into(), text: "x\ny".into(), lines: vec![1, 7] };
        let said = |file: &str| {
            format!("{{\"comments\":[{{\"file\":\"{file}\",\"line\":2,\"code\":2086,\"message\":\"m\"}}]}}")
        };
        let problems_of = |file: &str| problems(said(file).as_bytes(), std::slice::from_ref(&script));
        assert_eq!(problems_of("/tmp/x/0").unwrap()[0].to_string(), "a.j2:7: SC2086: m");
        assert!(problems_of("/tmp/x/1").is_err() && problems_of("-").is_err() && problems(b"{}", &[]).is_err());
    }
}
