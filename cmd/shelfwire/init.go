package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/reference"
)

func initCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init [DIR]",
		Short: "Write a commented configuration to start from, and the SQL that the source needs",
		Long: "Writes shelfwire.yaml, documents.sql, routes.yaml and setup.sql. Documents and routes are those of the\n" +
			"reference schema: replace them by your own. No file is overwritten.",
		Args: atMostOne("directory"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		dir := "."
		if len(args) == 1 {
			dir = args[0]
		}
		routes, err := reference.Routes()
		if err != nil {
			return err
		}
		setup, err := postgres.SetupSQL(postgres.Setup{Routes: routes})
		if err != nil {
			return err
		}
		files := []struct{ name, text string }{
			{"shelfwire.yaml", config.Template},
			{"documents.sql", reference.DocumentsSQL()},
			{"routes.yaml", string(reference.RoutesYAML())},
			{"setup.sql", setup},
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for _, f := range files {
			path := filepath.Join(dir, f.name)
			if err := writeNew(path, f.text); err != nil {
				return err
			}
			cmd.Println("wrote", path)
		}
		cmd.Println("Next: describe your tables in routes.yaml and documents.sql, let an administrator run setup.sql,")
		cmd.Println("set the environment variables that shelfwire.yaml names, and try it: shelfwire check")
		return nil
	}
	return cmd
}

// writeNew writes a file that must not exist yet.
func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already; remove it or choose another directory", path)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
