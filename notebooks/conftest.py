import notebook_settings

notebook_settings.apply()
