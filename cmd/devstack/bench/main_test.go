package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"nothing", nil, 2, "Usage:"},
		{"help", []string{"--help"}, 0, "Usage:"},
		{"help of a command", []string{"quick", "--help"}, 0, "-postgres"},
		{"unknown command", []string{"everything"}, 2, `unknown command "everything"`},
		{"unknown flag", []string{"quick", "--fast"}, 2, "-fast"},
		{"flag of another command", []string{"full", "--seconds", "3"}, 2, "-seconds"},
		{"argument", []string{"full", "now"}, 2, `unexpected argument "now"`},
		{"no number", []string{"one", "--concurrency", "many"}, 2, "concurrency"},
		{"no jobs", []string{"one", "--concurrency", "0"}, 2, "at least 1"},
		{"report of nothing", []string{"report"}, 2, "report needs --results"},
		{"report of no file", []string{"report", "--results", "absent.json"}, 1, "absent.json"},
		{"play without a part", []string{"play"}, 1, "BENCH"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			require.Equal(t, test.code, run(t.Context(), test.args, &stdout, &stderr))
			require.Contains(t, stdout.String()+stderr.String(), test.says)
		})
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	docs := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(docs, "images"), 0o750))
	page := filepath.Join(docs, "benchmarks.md")
	text, err := os.ReadFile("../../../docs/benchmarks.md")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(page, text, 0o600))
	results := filepath.Join(t.TempDir(), "results.json")
	require.NoError(t, os.WriteFile(results, []byte(`{"store": "SQLite", "machine": "a machine", "cells": [
		{"contestant": "executor", "concurrency": 1, "round": 1, "jobs_per_second": 2, "p50_ms": 3, "p99_ms": 4}]}`), 0o600))

	var stdout, stderr bytes.Buffer
	args := []string{"report", "--results", results, "--docs", docs}
	require.Zero(t, run(t.Context(), args, &stdout, &stderr), stderr.String())
	text, err = os.ReadFile(page)
	require.NoError(t, err)
	require.Contains(t, string(text), "| machine | a machine |")
	require.FileExists(t, filepath.Join(docs, "images", "bench-rate.svg"))

	// A page that lost a mark is left as it is.
	without := strings.Replace(string(text), "<!-- machine -->", "", 1)
	require.NoError(t, os.WriteFile(page, []byte(without), 0o600))
	require.Equal(t, 1, run(t.Context(), args, &stdout, &stderr))
	require.Contains(t, stderr.String(), "<!-- machine -->")
	text, err = os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, without, string(text))

	require.NoError(t, os.WriteFile(results, []byte("no JSON"), 0o600))
	require.Equal(t, 1, run(t.Context(), args, &stdout, &stderr))
	require.Contains(t, stderr.String(), results)
}
