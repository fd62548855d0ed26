package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"berth.dev/berth/blockdev/loopcsi"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

// addCompletion defines what a shell offers for each command and flag: names from berthd, words, directories, or by
// default files.
func addCompletion(root *cobra.Command) {
	for _, cmd := range commandsBelow(root) {
		if cmd.ValidArgsFunction == nil && !takesFiles(cmd) {
			cmd.ValidArgsFunction = cobra.NoFileCompletions
		}
		for name, words := range flagWords() {
			if cmd.Flags().Lookup(name) != nil {
				cobra.CheckErr(cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)))
			}
		}
		for _, name := range []string{"directory", "hosts-dir", "tmp-dir", "root"} {
			if cmd.Flags().Lookup(name) != nil {
				cobra.CheckErr(cmd.MarkFlagDirname(name))
			}
		}
		for _, name := range plainFlags() {
			if cmd.Flags().Lookup(name) != nil {
				cobra.CheckErr(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
			}
		}
	}
}

// commandsBelow returns a command and all commands below it.
func commandsBelow(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		all = append(all, commandsBelow(c)...)
	}
	return all
}

// takesFiles reports whether the arguments of the command are files or devices.
func takesFiles(cmd *cobra.Command) bool {
	return strings.Contains(cmd.Use, "DISK") || strings.Contains(cmd.Use, "DEVICE") || strings.Contains(cmd.Use, "DIRECTORY")
}

// flagWords are the values of flags that take one of a few words.
func flagWords() map[string][]cobra.Completion {
	var features []cobra.Completion
	for _, f := range loopcsi.Features() {
		features = append(features, string(f))
	}
	return map[string][]cobra.Completion{
		"fs":          {"erofs", "ext4"},
		"elimination": {"none", "lru"},
		"order":       {"saved", "size", "quantity", "degree"},
		"platform":    {"linux/amd64", "linux/arm64"},
		"without":     features,
	}
}

// plainFlags take names and numbers, never files.
func plainFlags() []string {
	return []string{
		"annotation", "build-timeout", "client-token", "copies", "created", "dns", "driver", "expect", "expires", "explain",
		"flash-copies", "id", "if-id", "if-version", "image", "index-digest", "insecure-skip-verify", "label",
		"max-layer-files", "max-layer-size", "max-volumes", "name", "namespace", "node-id", "owner", "parallel",
		"parameter", "plain-http", "pod-label", "registry-secret", "retention-days", "size", "snapshot-time",
		"snapshotter", "uuid", "volume-snapshot",
	}
}

// completeOne completes a command's only argument with the names that ask returns. A shell has no place to show an
// error, so it is dropped.
func completeOne(ask func(context.Context) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names, err := ask(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// diskNames returns the names of berthd's disks.
func (f *daemonFlags) diskNames(ctx context.Context) (names []string, _ error) {
	err := f.call(ctx, func(ctx context.Context, c controlv1.ControlServiceClient) error {
		resp, err := c.ListDisks(ctx, &controlv1.ListDisksRequest{})
		for _, d := range resp.GetDisks() {
			names = append(names, d.GetName())
		}
		return err
	})
	return names, err
}

// imageSnapshotNames returns the names of berthd's image snapshots.
func (f *daemonFlags) imageSnapshotNames(ctx context.Context) (names []string, _ error) {
	err := f.imageSnapshots(ctx, func(ctx context.Context, c imageSnapshots) error {
		all, err := listImageSnapshots(ctx, c, nil)
		for _, s := range all {
			names = append(names, s.GetName())
		}
		return err
	})
	return names, err
}
