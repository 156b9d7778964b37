package store

import (
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/pressly/goose/v3"
)

func openMySQL(raw string) (dialect, *sql.DB, error) {
	cfg, err := mysqlConfig(raw)
	if err != nil {
		return dialect{}, nil, err
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return dialect{}, nil, configError(mysqlName, "the URL's parameters contradict each other")
	}
	// The lock's name is server-wide; two databases of one server may migrate
	// at the same time.
	const name = "CONCAT('executor_migrate_', LEFT(SHA1(DATABASE()), 16))"
	d := dialect{
		name:       mysqlName,
		migrations: mysqlName,
		goose:      goose.DialectMySQL,
		migrating: sessionLock{
			lock:   "SELECT GET_LOCK(" + name + ", 300)",
			unlock: "DO RELEASE_LOCK(" + name + ")",
		},
		// ON DUPLICATE KEY UPDATE cannot tell an insert from a meeting while
		// found rows are counted, and INSERT IGNORE hides cut values.
		unlessPresent: "",
		hasTables:     "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'executor_jobs'",
		forUpdate:     " FOR UPDATE",
		insertAlone:   true,
		time:          nativeTime,
		reason:        mysqlReason,
	}
	d.queries = newQueries(d)
	return d, pooled(sql.OpenDB(connector)), nil
}

// mysqlConfig turns a mysql:// URL into the driver's configuration. What the
// store relies on is not left to the URL: UTC, native times, utf8mb4, and
// strict mode, so that a value is refused rather than cut.
func mysqlConfig(raw string) (*mysql.Config, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Fragment != "" || strings.Contains(u.Path, "@") {
		return nil, configError(mysqlName, "the URL cannot be read; percent-encode / ? # @ : in user and password")
	}
	database := strings.TrimPrefix(u.Path, "/")
	if u.Hostname() == "" || database == "" || strings.Contains(database, "/") {
		return nil, configError(mysqlName, "the URL must name host and database: mysql://user:password@host:3306/database")
	}
	params, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, configError(mysqlName, "the URL's parameters cannot be read")
	}
	driverParams, secure, err := mysqlParams(params, u.Hostname())
	if err != nil {
		return nil, err
	}
	cfg, err := mysql.ParseDSN("/?" + driverParams.Encode())
	if err != nil {
		return nil, configError(mysqlName, "a parameter of the URL has a value the driver does not know")
	}
	cfg.User = u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	cfg.Net, cfg.Addr = "tcp", net.JoinHostPort(u.Hostname(), portOr(u, "3306"))
	cfg.DBName = database
	cfg.ParseTime = true
	cfg.InterpolateParams = true // one round trip instead of prepare, execute and close
	cfg.ClientFoundRows = true
	cfg.Logger = &mysql.NopLogger{} // it would write to stderr what it also returns
	cfg.Params = map[string]string{"sql_mode": "'STRICT_ALL_TABLES'"}
	switch {
	case secure != nil:
		cfg.TLS = secure
	case cfg.TLS != nil && !cfg.TLS.InsecureSkipVerify:
		// ParseDSN was not given the address, and expects the name of its default one.
		cfg.TLS.ServerName = u.Hostname()
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = dialTimeout
	}
	if err := cfg.Apply(mysql.Charset("utf8mb4", "")); err != nil {
		return nil, configError(mysqlName, "the character set utf8mb4 cannot be used")
	}
	return cfg, nil
}

// mysqlParams sorts the URL's parameters: those passed to the driver, those
// that describe TLS in the words of MySQL's own clients, and those that are
// ours to decide. Others are refused, because the driver would send them to
// the server as variables to set.
func mysqlParams(params url.Values, host string) (url.Values, *tls.Config, error) {
	pass := url.Values{}
	var secure *tls.Config
	for name := range params {
		value := params.Get(name)
		switch name {
		case "tls", "timeout", "readTimeout", "writeTimeout", "maxAllowedPacket", "compress",
			"allowNativePasswords", "allowCleartextPasswords", "allowFallbackToPlaintext",
			"connectionAttributes":
			pass.Set(name, value)
		case "charset", "collation", "parseTime", "loc", "interpolateParams", "clientFoundRows":
		case "ssl-mode", "sslmode":
			mode, ok := mysqlTLSMode(value)
			if !ok {
				return nil, nil, configError(mysqlName, name+" must be DISABLED, PREFERRED, REQUIRED or VERIFY_IDENTITY")
			}
			pass.Set("tls", mode)
		case "ssl-ca":
			pem, err := os.ReadFile(value)
			if err != nil {
				return nil, nil, configError(mysqlName, "the file named by ssl-ca cannot be read")
			}
			roots := x509.NewCertPool()
			if !roots.AppendCertsFromPEM(pem) {
				return nil, nil, configError(mysqlName, "the file named by ssl-ca holds no certificate")
			}
			secure = &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS12}
		default:
			return nil, nil, configError(mysqlName, "the URL has an unknown parameter: "+strconv.Quote(name))
		}
	}
	return pass, secure, nil
}

// mysqlTLSMode translates the modes of MySQL's clients into the driver's.
func mysqlTLSMode(mode string) (string, bool) {
	switch strings.ToUpper(mode) {
	case "DISABLED", "DISABLE":
		return "false", true
	case "PREFERRED", "PREFER":
		return "preferred", true
	case "REQUIRED", "REQUIRE":
		return "skip-verify", true // encrypted, as the mode promises, and no more
	case "VERIFY_CA", "VERIFY-CA", "VERIFY_IDENTITY", "VERIFY-FULL":
		return "true", true
	default:
		return "", false
	}
}

func portOr(u *url.URL, port string) string {
	if p := u.Port(); p != "" {
		return p
	}
	return port
}

func mysqlReason(err error) reason {
	var refused *mysql.MySQLError
	if !errors.As(err, &refused) {
		r := commonReason(err)
		switch {
		case r.cause != nil || r.conflict:
		case errors.Is(err, mysql.ErrInvalidConn):
			r.text, r.cause = "the connection was lost", ErrUnreachable
		case errors.Is(err, mysql.ErrNoTLS):
			r.text = "the server does not speak TLS"
		case errors.Is(err, mysql.ErrPktTooLarge):
			r.text = "the row is larger than the driver's maxAllowedPacket"
		case errors.Is(err, mysql.ErrCleartextPassword), errors.Is(err, mysql.ErrNativePassword),
			errors.Is(err, mysql.ErrOldPassword), errors.Is(err, mysql.ErrUnknownPlugin):
			r.text = "the server asks for a kind of login that is not allowed; see the driver's allow… parameters"
		}
		return r
	}
	r := reason{code: "error " + strconv.Itoa(int(refused.Number)), text: "the server refused the statement"}
	switch refused.Number {
	case 1062: // duplicate key
		r.text, r.duplicate, r.conflict = "the row exists", true, true
	case 1020, 1205, 1213: // record changed, lock wait timeout, deadlock
		r.text, r.conflict = "lost against concurrent transactions", true
	case 1045, 1698:
		r.text = "the login was refused"
	case 1049:
		r.text = "the database does not exist"
	case 1044, 1142, 1227:
		r.text = "the user lacks a right on the tables executor_*"
	case 1054, 1146:
		r.text = "a table or column of ours is missing"
	case 1290, 1792, 1836:
		r.text = "the database is read-only"
	case 1021, 1114:
		r.text = "the server's disk is full"
	case 1040, 1203, 1226:
		r.text, r.cause = "the server has no connection left", ErrUnreachable
	case 1053, 1927:
		r.text, r.cause = "the server is stopping", ErrUnreachable
	case 1153:
		r.text = "the row is larger than the server's max_allowed_packet"
	}
	return r
}
