package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/nodpt/executor/cmd/devstack/internal/bench"
	"github.com/nodpt/executor/cmd/devstack/internal/bench/page"
)

// report is the command that writes what was measured into the documentation.
func report(flags *flag.FlagSet, _, _ io.Writer) func(context.Context) error {
	results := flags.String("results", "", "`file` that bench full has kept")
	postgres := flags.String("postgres", "", "`file` that bench postgres has kept; without it the page says nothing of that")
	docs := flags.String("docs", "docs", "`directory` of benchmarks.md, with the pictures below images")
	return func(context.Context) error {
		if *results == "" {
			return &usageError{"report needs --results"}
		}
		r, err := read(*results)
		if err != nil {
			return err
		}
		var other *bench.Report
		if *postgres != "" {
			other = new(bench.Report)
			if *other, err = read(*postgres); err != nil {
				return err
			}
		}
		return document(*docs, r, other)
	}
}

func read(path string) (r bench.Report, err error) {
	text, err := os.ReadFile(path) //nolint:gosec // G304: named on the command line
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// document brings the page and its pictures up to date.
func document(docs string, r bench.Report, postgres *bench.Report) error {
	path := filepath.Join(docs, "benchmarks.md")
	old, err := os.ReadFile(path) //nolint:gosec // G304: named on the command line
	if err != nil {
		return err
	}
	text, err := page.Update(string(old), page.Parts(r, postgres))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	images, err := page.Images(r)
	if err != nil {
		return err
	}
	for name, svg := range images {
		if err := os.WriteFile(filepath.Join(docs, "images", name), svg, 0o644); err != nil { //nolint:gosec // G306: documentation is for everyone to read
			return err
		}
	}
	return os.WriteFile(path, []byte(text), 0o644) //nolint:gosec // G306: likewise
}
