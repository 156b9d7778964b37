package main

import (
	_ "github.com/alicebob/miniredis/v2"
	_ "github.com/jedib0t/go-pretty/v6/table"
	_ "github.com/redis/go-redis/v9"
	_ "github.com/stretchr/testify/require"
	_ "github.com/temporalio/ui-server/v2/server"
	_ "go.temporal.io/sdk/client"
	_ "go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	_ "go.temporal.io/server/temporal"
	_ "go.temporal.io/server/schema/sqlite"
)

func main() {}
