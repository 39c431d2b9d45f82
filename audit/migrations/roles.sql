-- Who may do what in a log's database. Idempotent: `sealgate log prepare` runs it, as may psql, as the tables' owner.
--
--   DATABASE_writer    the runtime host: adds, moves the head, keeps pseudonyms and budgets; never changes a leaf
--   DATABASE_reader    the gateway: reads the log, and the key that authenticates its cursors
--   DATABASE_auditor   people who ask in SQL: the log and the budgets, no pseudonyms, no secrets
--   DATABASE_pruner    retention: deletes leaves and their index rows; hashes stay, so that newer proofs hold
--
-- None of them may log in: grant them to roles that do. Whatever they had before is taken away first. Tables that are
-- not the log's own (budgets) are the writer's to change and everybody's to read but the pruner's.

DO $roles$
DECLARE
    base constant text := current_database();
    own constant text[] := ARRAY['head', 'leaf', 'record', 'open_intent', 'shard', 'tile', 'checkpoint', 'cosigned', 'subject', 'day_count', 'day_span', 'alembic_version'];
    writer constant text := base || '_writer';
    reader constant text := base || '_reader';
    auditor constant text := base || '_auditor';
    pruner constant text := base || '_pruner';
    role_name text;
    table_name text;
BEGIN
    IF octet_length(base) > 50 THEN
        RAISE EXCEPTION 'the name of the database is too long to be part of a role''s';
    END IF;

    -- Their owner can do anything with tables: that must not be the writer.
    FOR table_name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tableowner <> current_user LOOP
        EXECUTE format('ALTER TABLE public.%I OWNER TO CURRENT_USER', table_name);
    END LOOP;

    EXECUTE format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', base);
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC;

    FOREACH role_name IN ARRAY ARRAY[writer, reader, auditor, pruner] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
        END IF;
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = role_name AND (rolsuper OR rolbypassrls OR rolcreaterole)) THEN
            RAISE EXCEPTION 'the role % has rights that no grant takes away', role_name;
        END IF;
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA public FROM %I', role_name);
        EXECUTE format('REVOKE ALL ON SCHEMA public FROM %I', role_name);
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', base, role_name);
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', role_name);
    END LOOP;

    EXECUTE format('GRANT SELECT, INSERT ON head, leaf, record, open_intent, shard, tile, checkpoint, cosigned, subject, day_count, day_span TO %I', writer);
    EXECUTE format('GRANT UPDATE (size, root, seal, holds) ON head TO %I', writer);
    EXECUTE format('GRANT UPDATE (hashes) ON tile TO %I', writer);
    EXECUTE format('GRANT UPDATE ON day_count, day_span TO %I', writer);
    EXECUTE format('GRANT DELETE ON open_intent, checkpoint, cosigned, subject TO %I', writer);
    EXECUTE format('GRANT SELECT ON alembic_version TO %I, %I, %I, %I', writer, reader, auditor, pruner);

    EXECUTE format('GRANT SELECT ON leaf, record, shard, tile, checkpoint, cosigned, day_count, day_span TO %I, %I', reader, auditor);
    EXECUTE format('GRANT SELECT ON head TO %I', reader);
    EXECUTE format('GRANT SELECT (id, schema_version, origin, size, root, holds) ON head TO %I, %I', auditor, pruner);

    EXECUTE format('GRANT SELECT (idx), DELETE ON leaf TO %I', pruner);
    EXECUTE format('GRANT SELECT, DELETE ON record TO %I', pruner);
    EXECUTE format('GRANT SELECT, DELETE ON day_count TO %I', pruner);
    EXECUTE format('GRANT SELECT ON day_span, shard TO %I', pruner);

    FOR table_name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> ALL (own) LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON public.%I TO %I', table_name, writer);
        EXECUTE format('GRANT SELECT ON public.%I TO %I, %I', table_name, reader, auditor);
    END LOOP;
END
$roles$;
