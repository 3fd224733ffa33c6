package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/spf13/cobra"
)

// usageError is a mistake in the command line: what is wrong, and where to read how it is meant.
func usageError(cmd *cobra.Command, format string, args ...any) error {
	return &exitCode{exitUsage, fmt.Errorf("%s; see %s --help", fmt.Sprintf(format, args...), cmd.CommandPath())}
}

// noArgs is for commands that take flags only.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError(cmd, "%s takes no %q", cmd.Name(), args[0])
	}
	return nil
}

// atMostOne is for commands that take one argument, or none.
func atMostOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usageError(cmd, "%s takes one %s, and was given %d: %s", cmd.Name(), what, len(args), strings.Join(args, " "))
		}
		return nil
	}
}

// unknownCommand is what the root runs: with nothing it helps, and with anything it does not know the command.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return usageError(cmd, "there is no command %q%s", args[0], didYouMean("", args[0], names))
}

// didYouMean names what a mistyped word may have stood for; empty when nothing is near.
func didYouMean(prefix, word string, known []string) string {
	best, least := "", 3
	for _, k := range known {
		d := levenshtein.ComputeDistance(word, k)
		if len(word) > 2 && strings.HasPrefix(k, word) {
			d = min(d, 1)
		}
		if d < least && d < len(k) {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s%s?)", prefix, best)
}

// invalidValue finds the flag in the library's text; its error names it in no other way.
var invalidValue = regexp.MustCompile(`for "(?:-\w, )?--([\w-]+)" flag`)

// flagError says a mistake in a flag in the words of the rest. args are the whole command line.
func flagError(cmd *cobra.Command, err error, args []string) error {
	var value interface{ GetValue() string }
	var named interface {
		GetSpecifiedName() string
		GetSpecifiedShortnames() string
	}
	switch {
	case errors.As(err, &value):
		m := invalidValue.FindStringSubmatch(err.Error())
		if m == nil {
			break
		}
		want := map[string]string{
			"duration": "a time such as 500ms, 20s or 5m", "int": "a whole number", "uint64": "a whole number, 0 or more", "bool": "true or false",
		}[cmd.Flag(m[1]).Value.Type()]
		return usageError(cmd, "--%s %s: give %s", m[1], value.GetValue(), want)
	case errors.As(err, &named):
		flag := "--" + named.GetSpecifiedName()
		if short := named.GetSpecifiedShortnames(); short != "" {
			flag = "-" + named.GetSpecifiedName()
		}
		if strings.HasPrefix(err.Error(), "flag needs") {
			return usageError(cmd, "%s needs a value", flag)
		}
		// A mistyped command leaves its flags to the root, which has none of them.
		if i := slices.IndexFunc(args, func(a string) bool { return !strings.HasPrefix(a, "-") }); !cmd.HasParent() && i >= 0 {
			return unknownCommand(cmd, args[i:])
		}
		return usageError(cmd, "%s has no flag %s%s", cmd.Name(), flag, didYouMean("--", named.GetSpecifiedName(), flagNames(cmd)))
	}
	return usageError(cmd, "%s", err)
}

// flagNames lists the flags of a command.
func flagNames(cmd *cobra.Command) []string {
	var names []string
	for line := range strings.SplitSeq(cmd.LocalFlags().FlagUsages(), "\n") {
		if _, after, ok := strings.Cut(line, "--"); ok {
			name, _, _ := strings.Cut(after, " ")
			names = append(names, name)
		}
	}
	return names
}
