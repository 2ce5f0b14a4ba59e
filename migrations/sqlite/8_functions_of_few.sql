-- Of functions and who may call them SQLite knows nothing: who may write the file may do everything.
SELECT 1;
